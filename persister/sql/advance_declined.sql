-- How far the side stream was read, only from where the rows that are added begin.
INSERT INTO declined_read AS d (shard, read_to) VALUES (%(shard)s, %(after)s)
ON CONFLICT (shard) DO UPDATE SET read_to = excluded.read_to WHERE d.read_to = %(before)s
