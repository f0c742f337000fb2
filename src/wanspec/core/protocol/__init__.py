"""WHO says what when: messages, events, effects, the controller and worker machines, the RTT estimate."""
