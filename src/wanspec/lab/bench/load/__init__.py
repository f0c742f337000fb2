"""The load generator behind `wanspec bench serve`: a real server, real sockets, many users, and what they see."""
