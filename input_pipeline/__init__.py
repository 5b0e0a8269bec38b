"""From CT files to training batches.

The way of a scan: `sources` (where it lies, and its labels as codes of `anatomy`; `ct` reads it) ->
`bricks` (records on disk, made once by `prepare`) -> `batches`. `patients` keeps the cases of one
patient together.

Programs: `prepare`, `dedupe`, `inspect`, `throughput`, `openkbp_download`. What the programs of
both packages share stands beside them: `cli`, `control_groups`, `errors`, `files`, `lazy`,
`progress`, `remarks`, `stopping`.
"""
