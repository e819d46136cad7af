-- Which machine a gateway ran on: in Kubernetes the pod, whose claim has the journal. Empty for those of before.

ALTER TABLE incarnations ADD COLUMN host bytewise NOT NULL DEFAULT '';
