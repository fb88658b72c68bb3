"""The actions of `kimbox job`, one module each."""
