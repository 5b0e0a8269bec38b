"""A DICOM node: series come by C-STORE, are segmented, and the results go back by C-STORE."""
