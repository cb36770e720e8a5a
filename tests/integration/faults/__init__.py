"""The fault matrix: one test for each fault, with a real agent and a real Kafka; README.md tells what each looks like."""
