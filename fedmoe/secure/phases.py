"""What the messages of a secure sum are called on their way. Both apps know it from the start: nothing is imported."""

PHASES = ("keys", "shares", "masked", "survivors", "unmasking")  # ``train.keys`` and so on
AHEAD = {"masked": "keys", "unmasking": "shares"}  # which phases of the next sum travel with which of this one
RECORD = "secure"  # the record of a message that belongs to the protocol
NEXT = "next"  # in the record: what belongs to the next sum
PART, ROWS_FIRST = "part", "rows"  # of two sums: the touched rows are counted first, and the model travels with that
UNION = "union"  # and then the rest is added up at these rows
SMALLEST = 3  # clients in a sum: of two, each knows the other's vector
