-- What is open past the rules has identifiers of its own kind. Whatever is open under an old one closes: it is of four hours at most.
DELETE FROM break_glass;
