"""CT volumes: NIfTI and DICOM to canonical arrays, and other grids."""
