"""What lies in files and folders, before anybody knows that it is CT.

`inventory` tells which files of a folder are input, by their names and first bytes (`file_kinds`)
and by the text at their head (`image_headers`). `text_files` reads and replaces texts,
`folder_lock` gives a folder to one process at a time, `buckets` knows which places are in no file
system.
"""
