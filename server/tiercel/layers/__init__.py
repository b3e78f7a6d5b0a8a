"""The building blocks of a Falcon layer. They hold weights; all state of a step comes as arguments."""
