"""The command line: `flowmaps COMMAND`. One file a command, and nothing heavy is imported until a command runs."""
