"""DynUNet in nnU-Net's manner and Swin UNETR, both of MONAI, trained and scored beside MoME."""
