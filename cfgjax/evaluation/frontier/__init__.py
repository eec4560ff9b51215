"""The frontier of guidance: samples drawn and measured over w."""
