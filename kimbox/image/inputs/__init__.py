"""What an image is made of when it is built here: the folders of provisioners/, and the recipe with its key."""
