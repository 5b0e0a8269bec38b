"""Sparse experts: tokens and routes; nothing of images, text or files.

Letters used in every shape of this package:

  N  tokens over all devices, n on one
  E  experts
  k  experts each token chooses
  C  capacity: rows an expert takes from one device
  d  width of a token

`routing` makes the routes and the plan of who goes where, `dense` and `capacity` execute it.
"""
