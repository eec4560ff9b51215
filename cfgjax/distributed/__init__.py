"""The processes of a run: how they find each other, check that they belong to one run, and detect failures."""
