"""The commands of `hotledger`, by what they are about."""
