"""DynUNet in nnU-Net's manner and Swin UNETR, both of MONAI, trained and scored beside MoME.

python -m tests.benchmarks.peers train dynunet --workdir=runs/peer_dynunet --steps=N
python -m tests.benchmarks.peers time dynunet
"""
