"""What the benchmarks share."""

import sys


def help_or_run(main, text):
    """Prints `text` for --help, else runs the benchmark."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(text.strip())
    else:
        main()
