"""Numbers that carry a check digit: bank cards, Chinese identity cards."""

import datetime
import re

# Beginnings and lengths of bank cards (ISO/IEC 7812 and the networks' lists).
_CARD = re.compile(
  r'4(?:\d{12}|\d{15}|\d{18})'  # Visa
  r'|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}'
  r'|3[47]\d{13}'  # American Express
  r'|(?:6011|65\d\d|64[4-9]\d)\d{12}'  # Discover
  r'|62\d{14,17}'  # UnionPay
  r'|35(?:2[89]|[3-8]\d)\d{12}'  # JCB
  r'|3(?:0[0-5]|[689]\d)\d{11}'  # Diners
)
# Provinces, the first two digits of GB/T 2260.
_PROVINCES = frozenset(
  [*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47)]
  + [*range(50, 55), *range(61, 66), 71, 81, 82, 83]
)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECKS = '10X98765432'


def luhn(digits: str) -> bool:
  """Returns whether digits pass Luhn's check (ISO/IEC 7812-1).

  Example: luhn('79927398713') is True
  """
  total = 0
  for place, digit in enumerate(reversed(digits)):
    value = int(digit) * (1 + place % 2)
    total += value - 9 * (value > 9)
  return total % 10 == 0


def bank_card(digits: str) -> bool:
  """Returns whether digits are a card's: a network's beginning, and Luhn."""
  return bool(_CARD.fullmatch(digits)) and luhn(digits)


def chinese_id_check(digits: str) -> str:
  """Returns the 18th character after 17 digits (GB 11643, ISO 7064).

  Example: chinese_id_check('11010519491231002') == 'X'
  """
  pairs = zip(_WEIGHTS, digits, strict=True)
  return _CHECKS[sum(weight * int(digit) for weight, digit in pairs) % 11]


def chinese_id(number: str) -> bool:
  """Returns whether 18 characters are a Chinese identity number."""
  if int(number[:2]) not in _PROVINCES or not _is_date(number[6:14]):
    return False
  return chinese_id_check(number[:17]) == number[17].upper()


def chinese_id_15(number: str) -> bool:
  """Returns whether 15 digits can be an identity number of before 1999."""
  return int(number[:2]) in _PROVINCES and _is_date('19' + number[6:12])


def _is_date(digits: str) -> bool:
  """Returns whether YYYYMMDD is a day that somebody can be born on."""
  try:
    day = datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
  except ValueError:
    return False
  return 1850 <= day.year < 2100
