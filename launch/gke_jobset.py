r"""Prints a JobSet that trains on TPU slices of a GKE cluster.

python launch/gke_jobset.py --image=IMAGE --bucket=BUCKET --topology=v5e:4x4 \
    -- --config=sparse_32 | kubectl apply -f -

One pod a host; several slices train together as one run. The workdir is gs://BUCKET/NAME unless
the arguments after -- name another, compiled programs are kept in gs://BUCKET/cache. It needs a
cluster with JobSet, a node pool of each slice, an image (launch/Dockerfile), and a service account
that may write to the bucket: see docs/how-to/pods.md.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys

from plain_parser import Parser  # beside this file

# As in mome_jax/training/multihost.py; that is not imported: any Python runs this file.
PREEMPTED = 75
# Label of the nodes: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
ACCELERATORS = {
  'v4': 'tpu-v4-podslice',
  'v5e': 'tpu-v5-lite-podslice',
  'v5p': 'tpu-v5p-slice',
  'v6e': 'tpu-v6e-slice',
}
AXES = {'v4': 3, 'v5e': 2, 'v5p': 3, 'v6e': 2}


def main(argv: list[str] | None = None) -> int:
  """The command line; returns the exit code."""
  print(json.dumps(job_set(_parse(argv)), indent=2))
  return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = Parser(__doc__.split('\n')[0])
  add = parser.add_argument
  add('--image', required=True, help='container image of launch/Dockerfile')
  add('--bucket', required=True, help='of Google Cloud Storage, without gs://')
  add('--topology', required=True, help=f'of one slice: one of {", ".join(AXES)} and v5e:4x4')
  add('--slices', type=int, default=1, help='that train together; each needs a node pool')
  add('--chips-per-host', type=int, default=4, help='of the machine type of the node pool')
  add('--name', default='mome', help='of the JobSet; names the workdir too')
  add('--service-account', help='of Kubernetes, that may write to the bucket')
  add('--spot', action='store_true', help='only nodes that may be preempted')
  add('--restarts', type=int, default=3, help='after failures; preemptions do not count')
  add('arguments', nargs='+', help='of python -m mome_jax.main, after --')
  options = parser.parse_args(argv)
  family, _, size = options.topology.partition(':')
  sides = [int(n) for n in size.split('x')] if re.fullmatch(r'\d+(x\d+)+', size) else []
  if len(sides) != AXES.get(family, -1) or 0 in sides:
    parser.error(
      f'--topology={options.topology}: expected v5e:4x4, v6e:4x4, v5p:2x2x2, v4:2x2x2 or the like'
    )
  options.family, options.size, chips = family, size, math.prod(sides)
  options.hosts, rest = divmod(chips, min(options.chips_per_host, chips) or 1)
  if options.chips_per_host < 1 or rest:
    parser.error(f'--chips-per-host={options.chips_per_host}: {chips} chips are no multiple of it')
  options.chips = chips // options.hosts
  if options.slices < 1:
    parser.error(f'--slices={options.slices}: expected at least 1')
  if not re.fullmatch(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?', options.name):
    parser.error(f'--name={options.name}: expected a-z, 0-9 and -, at most 40, a letter first')
  return options


def job_set(options: argparse.Namespace) -> dict:
  """The JobSet (jobset.x-k8s.io/v1alpha2) of a run."""
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': options.name,
      # The hosts of a slice are one node pool, and no other slice's.
      'annotations': {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
      },
    },
    'spec': {
      'failurePolicy': {
        'maxRestarts': options.restarts,
        # A run that saved because it was asked to end, or whose node was taken away, goes on from
        # its newest checkpoint: that costs no restart.
        'rules': [
          {
            'name': 'preempted',
            'action': 'RestartJobSetAndIgnoreMaxRestarts',
            'onJobFailureReasons': ['PodFailurePolicy'],
          }
        ],
      },
      'replicatedJobs': [
        {'name': 'slice', 'replicas': options.slices, 'template': {'spec': _job(options)}}
      ],
    },
  }


def _job(options: argparse.Namespace) -> dict:
  fail = lambda **rule: {'action': 'FailJob', **rule}
  return {
    'parallelism': options.hosts,
    'completions': options.hosts,
    'completionMode': 'Indexed',
    'backoffLimit': 0,
    'podFailurePolicy': {
      'rules': [
        fail(onExitCodes={'containerName': 'train', 'operator': 'In', 'values': [PREEMPTED]}),
        fail(onPodConditions=[{'type': 'DisruptionTarget', 'status': 'True'}]),
      ]
    },
    'template': {'spec': _pod(options)},
  }


def _pod(options: argparse.Namespace) -> dict:
  words = list(options.arguments)
  if not any(word.startswith('--workdir') for word in words):
    words.append(f'--workdir=gs://{options.bucket}/{options.name}')
  nodes = {
    'cloud.google.com/gke-tpu-accelerator': ACCELERATORS[options.family],
    'cloud.google.com/gke-tpu-topology': options.size,
  }
  if options.spot:
    nodes['cloud.google.com/gke-spot'] = 'true'
  environment = {
    'JAX_PLATFORMS': 'tpu,cpu',  # without its TPU a host must not go on with its CPU
    'MOME_DEVICES': str(options.chips),
    'MOME_CACHE': f'gs://{options.bucket}/cache',
  }
  account = {'serviceAccountName': options.service_account} if options.service_account else {}
  return {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': 300,
    'nodeSelector': nodes,
    **account,
    'containers': [
      {
        'name': 'train',
        'image': options.image,
        'command': ['python', '-m', 'mome_jax.main', '--distributed', *words],
        'env': [{'name': name, 'value': value} for name, value in environment.items()],
        # Of the TPU runtime, of the coordinator of JAX, and of the exchange between slices.
        'ports': [{'containerPort': port} for port in (8471, 8476, 8080)],
        'resources': {
          'requests': {'google.com/tpu': options.chips},
          'limits': {'google.com/tpu': options.chips},
        },
      }
    ],
  }


if __name__ == '__main__':
  sys.exit(main())
