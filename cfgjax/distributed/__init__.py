"""The processes of a run: how they find each other, agree that they are one run, and notice when one of them fails."""
