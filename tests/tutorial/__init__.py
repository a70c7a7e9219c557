"""The chat of the Channels tutorial, before and after it tells who is typing: the least that this package asks for."""
