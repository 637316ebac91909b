"""What the product is compared with: the same order, made by other means a good team might choose.

`python -m bench.peers.NAME --port P` serves `POST /orders` and `GET /healthz` from the database at TCC_DATABASE_URL,
which must exist and may be empty. All share the tables (`schema.sql`), the request, the reply and the gateway
(`wire.py`), and how they are served (`serving.py`), so that what differs is how the work is done: through an ORM
(`orm.py`), by hand on the driver (`bare.py`), or as a durable workflow (`durable.py`). `order.sql` and `try.sql` are
what PostgreSQL does when nobody stands before it but pgbench.

None of them has what finishes an order after a crash, save for `durable.py`, which is made for that.
"""
