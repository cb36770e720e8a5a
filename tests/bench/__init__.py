"""What a record costs and how long it takes, beside something known, in the same run. Prints; asserts no figure.

python -m tests.bench file --records 1000000      a tailed file to Kafka, beside kcat
python -m tests.bench socket --records 1000000    apps' sockets, through the spool, to Kafka
python -m tests.bench emit --records 100000       what logging costs an app, beside a file handler
python -m tests.bench idle --files 5000           what quiet files cost, beside a single one
python -m tests.bench latency                     from a line's write to its consumer, beside a plain producer
python -m tests.bench drain --records 5000000     a backlog after an outage, beside a steady flow
python -m tests.bench curves                      a record's cost against connections, apps, files, backlog; plots
python -m tests.bench fleet --agents 50           what many agents do to three brokers
"""
