# Many small and some large objects, made and dropped: records, dictionaries, sorting, text, JSON.
import json
import sys


class Order:
    def __init__(self, number, customer, lines):
        self.number = number
        self.customer = customer
        self.lines = lines

    def total(self):
        return sum(price * count for _, price, count in self.lines)


def orders(count, state):
    for number in range(count):
        lines = []
        for line in range(1 + number % 7):
            state = (state * 1103515245 + 12345) % 2147483648
            lines.append((f"article-{state % 5000}", state % 997, 1 + line))
        yield Order(number, f"customer-{state % 300}", lines)


def main(rounds):
    checksum = 0
    for round_number in range(rounds):
        by_customer = {}
        for order in orders(8000, round_number):
            by_customer.setdefault(order.customer, []).append(order)
        ranking = sorted(by_customer, key=lambda name: -sum(order.total() for order in by_customer[name]))
        text = json.dumps({name: [order.lines for order in by_customer[name]] for name in ranking})
        parsed = json.loads(text)
        words = text.replace('"', " ").split()
        buffer = bytearray()
        for word in words[:20000]:
            buffer += word.encode()
        checksum += len(parsed) + len(words) + len(set(words)) + sum(buffer[::97])
    print(checksum)


main(int(sys.argv[1]))
