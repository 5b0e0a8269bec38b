"""Operations of 3D networks: each plain, beside its faster lowering where a platform needs one."""
