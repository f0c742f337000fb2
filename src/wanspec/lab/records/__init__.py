"""RECORDS of runs, read: the figures computed from them, token traces, and the tables and pictures that all of the lab shares."""
