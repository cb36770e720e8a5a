"""What the tests share: real processes, started, watched and ended; and the judge of what arrived."""
