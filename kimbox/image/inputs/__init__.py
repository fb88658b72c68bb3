"""The inputs of an image that kimbox builds: the folders of provisioners/, and the recipe with its key."""
