"""What a record costs, measured side by side with something known, in the same run. Prints; asserts no figure.

python -m tests.bench file --records 1000000      a tailed file to Kafka, beside kcat
python -m tests.bench socket --records 1000000    apps' sockets, through the spool, to Kafka
python -m tests.bench emit --records 100000       what logging costs an app, beside a file handler
"""
