"""The segmentation network: arrays in, arrays out; nothing of files, datasets or devices.

Letters used in every shape of this package:

  B      batch
  D H W  voxels along x, y, z of the canonical (RAS) volume
  C      channels; C_l at scale l, C_in of the image
  K      classes, one per text prompt
  L      scales of the pyramid, finest first; scale l has stride 2^l
  d      width of the text and context features, d_t of the text embedding, d_r of the router
  P      numbers in one class head (153)

Words, each for one thing:

  expert         what reads the features of one scale (`ScaleExpert`): a decoder-layer expert
  bank           E sparse experts inside one scale (`SparseBank`), of which each voxel uses k
  classes        t, (K, d): features of the classes asked for, made from their `text` (K, d_t)
  trained        (J, d): the same of the classes of training, which alone a bank attends to
  context        g, (B, d): what the bottleneck says about the whole patch or window
  theta          (B, K, P): the class heads' weights, made from context and classes
  gate           what a class trusts a scale by: makes router logits from features (`Gate`)
  router logits  a; their softmax over the scales are the weights of the mixture
  scores         s: a class's logits at one scale, from one expert
  logits         y: the mixture of the scores, what the model returns

Features are channels-last, (B, D, H, W, C). Maps that hold one value per class are class-first,
(B, K, D, H, W), until the model returns: per-class matrix products and resampling then run over
long contiguous axes, whatever K is.
"""

from mome_jax.models.mome import MoME, build_model

__all__ = ['MoME', 'build_model']
