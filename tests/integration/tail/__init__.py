"""Files and what befalls them: a real agent follows real files to a real Kafka, and each line arrives exactly once."""
