"""The atlas that `phantom` draws: tables of organs in mm and HU, the cavity and the diaphragm.

x to the patient's right, y anterior, z superior; the origin lies in front of the spine, between the
kidneys. Where two structures overlap, the order of painting in `phantom` decides.
"""

from collections.abc import Sequence

import numpy as np

from input_pipeline.sources.phantom import shapes

TOP, BOTTOM = 200.0, -205.0  # z of the scan's ends

# fmt: off
# HU in the late arterial phase, in the portal venous phase, standard deviation between patients.
HU = {
  'air': (-985, -985, 4), 'skin': (15, 15, 5), 'fat': (-102, -102, 4), 'muscle': (55, 62, 4),
  'cortical bone': (520, 520, 60), 'marrow': (190, 190, 40), 'disc': (85, 85, 8),
  'csf': (28, 28, 4), 'lung': (-860, -860, 20), 'lung vessel': (40, 60, 10),
  'heart': (150, 125, 12), 'myocardium': (85, 100, 8), 'aorta': (225, 152, 12),
  'postcava': (75, 125, 10), 'portal vein': (110, 145, 8),
  'liver': (68, 98, 6), 'hepatic vessel': (105, 150, 6), 'gallbladder': (8, 10, 4),
  'spleen': (115, 108, 7), 'pancreas': (92, 82, 6),
  'cortex': (175, 150, 12), 'medulla': (90, 140, 10), 'renal pelvis': (15, 40, 8),
  'cyst': (5, 6, 3), 'stomach': (18, 22, 8), 'bowel': (28, 22, 8), 'wall': (62, 72, 6),
  'bladder': (8, 12, 4), 'prostate': (52, 68, 6),
}

# Ellipsoids: centre (mm), radii (mm), rotation about x, y and z (degrees).
BLOBS = {
  'right lobe': ((68, 0, 12), (80, 90, 90), (0, 0, 0)),
  'left lobe': ((2, 52, 38), (68, 33, 34), (0, 0, 20)),
  'spleen': ((-94, -38, 34), (33, 47, 56), (20, 0, -15)),
  'right kidney': ((62, -44, -36), (29, 27, 56), (10, -10, 25)),
  'left kidney': ((-60, -46, -24), (29, 27, 57), (10, 10, -25)),
  'gallbladder': ((52, 52, -18), (15, 24, 22), (30, 0, 0)),
  'bladder': ((0, 22, -156), (42, 37, 31), (0, 0, 0)),
  'prostate': ((0, -8, -182), (24, 18, 20), (0, 0, 0)),
  'heart': ((-22, 26, 112), (58, 44, 46), (0, 20, 25)),
  'left ventricle': ((-44, 18, 100), (24, 18, 27), (0, 20, 25)),
  'right heart': ((4, 42, 110), (32, 18, 33), (0, 10, 10)),
  'left atrium': ((-6, -4, 128), (28, 16, 22), (0, 0, 0)),
}

# Range of the factor by which a patient's ellipsoid differs, where it is not 0.92 to 1.08.
SIZES = {'bladder': (0.75, 1.25), 'spleen': (0.9, 1.25), 'right lobe': (0.94, 1.15)}

# Tubes: control points x, y, z and radius (mm); a smooth curve runs through them.
TUBES = {
  'esophagus': ((-2, -20, 215, 7), (-4, -18, 140, 8), (-12, -2, 75, 8), (-24, 2, 58, 8)),
  'postcava': ((20, -6, -82, 10), (19, -4, -20, 11), (22, -4, 40, 12), (22, 4, 84, 12)),
  'portal vein': ((6, 14, -70, 5), (8, 12, -10, 6), (12, 8, 10, 7), (40, 10, 28, 6)),
  'splenic vein': ((10, 6, 12, 4), (-25, 2, 22, 4), (-75, -24, 34, 4)),
  'left renal vein': ((16, -4, -14, 4), (-8, 2, -12, 4), (-42, -34, -16, 4)),
  'renal arteries': ((36, -34, -28, 3), (4, -14, -8, 3), (-38, -34, -16, 3)),
  'aorta': ((-24, -34, 218, 12), (-24, -35, 110, 12), (-10, -13, 40, 11), (-3, -6, -72, 9)),
  'ascending aorta': ((-6, 10, 130, 13), (12, 22, 160, 15), (14, 14, 218, 15)),
  'pulmonary artery': ((-16, 40, 136, 12), (-20, 16, 166, 13), (4, 0, 158, 10), (34, -6, 142, 8)),
  'left pulmonary artery': ((-18, 20, 164, 11), (-28, -6, 158, 10), (-38, -10, 138, 7)),
  'superior cava': ((22, 8, 124, 9), (26, 8, 165, 9), (24, 6, 218, 9)),
  'right bronchus': ((2, -8, 218, 8), (2, -12, 170, 8), (20, -14, 152, 6), (40, -10, 130, 4)),
  'left bronchus': ((2, -12, 170, 8), (-24, -16, 150, 5), (-44, -12, 128, 4)),
  'right iliac': ((-3, -6, -72, 6), (30, -26, -115, 5), (62, 22, -165, 5), (72, 42, -215, 5)),
  'left iliac': ((-3, -6, -72, 6), (-34, -26, -115, 5), (-62, 22, -165, 5), (-72, 42, -215, 5)),
  'pancreas': ((36, 8, -16, 15), (24, 18, 0, 15), (-8, 24, 12, 10),
               (-42, 8, 22, 10), (-78, -18, 30, 9)),
  'stomach': ((-46, -14, 56, 22), (-58, 16, 40, 32), (-46, 46, 8, 26),
              (-8, 54, -8, 19), (30, 36, 0, 10)),
  'duodenum': ((34, 34, 0, 12), (54, 10, -10, 13), (48, 4, -45, 13),
               (0, 4, -52, 11), (-28, 14, -35, 11)),
  'right colon': ((84, 0, -118, 26), (98, -6, -70, 23), (84, 22, -46, 20), (40, 62, -62, 19)),
  'transverse colon': ((40, 62, -62, 19), (-25, 68, -60, 18), (-84, 38, -20, 18), (-104, 8, 2, 17)),
  'left colon': ((-104, 8, 2, 16), (-108, -20, -40, 14), (-98, -4, -95, 14), (-62, -10, -125, 15)),
  'rectum': ((-62, -10, -125, 15), (-15, 12, -122, 15), (8, -32, -135, 16), (0, -46, -205, 16)),
}
PSOAS = ((24, -38, 20, 8), (34, -38, -40, 16), (46, -26, -100, 19),
          (78, 22, -165, 17), (88, 12, -220, 17))
FEMUR = ((88, -6, -174, 13), (112, -18, -194, 14), (118, -20, -230, 16))
PUBIS = ((72, 12, -180, 8), (40, 34, -186, 8), (8, 40, -194, 11))

# Half axes of the body cavity, thickness of the muscle around it (mm), and relative thickness of
# the fat around that, against z.
PROFILE_Z = (-220, -170, -120, -70, 0, 60, 120, 220)
PROFILE_X = (72, 84, 108, 124, 130, 134, 132, 118)
PROFILE_Y = (62, 66, 74, 80, 86, 90, 90, 82)
MUSCLE = (66, 54, 28, 12, 10, 14, 18, 26)
FATNESS = (1.3, 1.3, 1.25, 1.1, 1.0, 0.8, 0.6, 0.6)
# fmt: on


def profile(z: np.ndarray, values: Sequence[float]) -> np.ndarray:
  """One of the profiles at heights z (mm), float32."""
  return np.interp(z, PROFILE_Z, values).astype(np.float32)


def cavity(p: np.ndarray) -> np.ndarray:
  """Distance to the inner face of the trunk's wall, a super-ellipse whose axes vary along z."""
  a, b, power = profile(p[2], PROFILE_X), profile(p[2], PROFILE_Y), 2.3
  u, v = np.abs(p[0]) / a + 1e-4, np.abs(p[1] - 4) / b + 1e-4
  up, vp = u ** (power - 1), v ** (power - 1)
  k = (u * up + v * vp) ** (1 / power)
  return (k - 1) * k ** (power - 1) / np.sqrt((up / a) ** 2 + (vp / b) ** 2)


def diaphragm(p: np.ndarray) -> np.ndarray:
  """Height of a point above the diaphragm's two domes and central tendon, divided by its slope."""
  x, y, z = p
  surface = [np.full_like(z, -12.0)]
  for cx, cy, peak, rx, ry in ((62, 0, 84, 80, 96), (-64, -5, 74, 76, 94), (-8, 25, 62, 110, 95)):
    surface.append(peak - 78 * (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2))
  return (z - shapes.smooth_max(12.0, *surface)) / 1.35
