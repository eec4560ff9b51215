"""Images: files, pixels, colour, stored records."""
