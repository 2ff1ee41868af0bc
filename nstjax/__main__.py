"""The command `nstjax`, also as `python -m nstjax`."""

from nstjax import interrupts


def main() -> None:
    """Run the command line."""
    interrupts.end_quietly()  # before the imports that take seconds
    from nstjax import console

    console.main()


if __name__ == "__main__":
    main()
