-- Who went on with a long order: `incarnation:number` of their journals, with spaces between them.

ALTER TABLE events ADD COLUMN handed bytewise;
