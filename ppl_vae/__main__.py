"""``python -m ppl_vae`` is ``ppl-vae``."""

from ppl_vae.cli import main

if __name__ == "__main__":
    main()
