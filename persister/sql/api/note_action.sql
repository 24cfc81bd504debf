INSERT INTO admin_action (actor, request_id, action, subject, details)
VALUES (%(actor)s, %(request_id)s, %(action)s, %(subject)s, %(details)s)
