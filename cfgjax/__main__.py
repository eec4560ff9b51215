from cfgjax.cli import main

main()
