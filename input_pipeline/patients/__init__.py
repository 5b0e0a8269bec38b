"""Which cases are of one patient, so that nobody is trained on and tested on.

`patient_groups` is the file in which `dedupe` says so of cases of any sources, and `prepare` reads
it. `patient_folds` takes whole patients of what is prepared, to set them aside or to deal them;
`folds` is what cross-validation makes of that: which cases a fold holds out.
"""
