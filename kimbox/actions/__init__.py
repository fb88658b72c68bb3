"""What the verbs do, from a plan or a machine. No module prints anything but progress.

Most modules have the name of their verb. `stop` has halt, suspend and destroy; `seal` secure; `boxes` box;
`vagrant_export` render. `observe` and `watch` read and wait for the state of a machine. lifecycle/ has what up,
provision and resume share. Verbs that only print have no module here.
"""
