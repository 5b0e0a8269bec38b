"""What a command says to a mistake."""


def told(main, argv, capsys) -> tuple[int, str]:
  """Exit code and the only line on the standard error of main(argv)."""
  capsys.readouterr()
  try:
    code = main(argv)
  except SystemExit as end:
    code = end.code
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: '), line
  return code, line.removeprefix('error: ')
