"""What a record costs and how long it takes, beside something known, in the same run. Prints; asserts no figure.

python -m tests.bench --records 2000000           every path to Kafka, beside kcat, rsyslog and syslog-ng
python -m tests.bench emit --records 100000       what logging costs an app, beside a file handler
python -m tests.bench idle --files 5000           what quiet files cost, beside a single one
python -m tests.bench start --seconds 60          what a start takes, and an agent with nothing to do
python -m tests.bench latency                     from a line's write to its consumer, beside a plain producer
python -m tests.bench drain --records 5000000     a backlog after an outage, beside a steady flow
python -m tests.bench curves                      a record's cost against connections, apps, files, backlog; plots
python -m tests.bench fleet --agents 50           what many agents do to three brokers
"""
