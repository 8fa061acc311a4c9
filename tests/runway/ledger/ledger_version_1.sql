-- A ledger of version 1, as SQLAlchemy wrote it before the ledger spoke SQL itself.
BEGIN TRANSACTION;
CREATE TABLE cometapi_generations (
	idempotency_key TEXT NOT NULL, 
	state TEXT NOT NULL, 
	task_id TEXT, 
	claim TEXT NOT NULL, 
	attempts INTEGER NOT NULL, 
	owner TEXT, 
	leased_until DOUBLE, 
	base_url TEXT NOT NULL, 
	credentials TEXT, 
	flow_run_id TEXT, 
	route TEXT, 
	model TEXT, 
	fingerprint TEXT, 
	request JSON, 
	billed_seconds DOUBLE, 
	storage TEXT, 
	created_at DATETIME NOT NULL, 
	changed_at DATETIME NOT NULL, 
	submitted_at DATETIME, 
	finished_at DATETIME, 
	stored_at DATETIME, 
	polls INTEGER NOT NULL, 
	outputs JSON NOT NULL, 
	videos JSON NOT NULL, 
	failure_code TEXT NOT NULL, 
	note TEXT NOT NULL, 
	charges INTEGER NOT NULL, 
	cost DOUBLE, 
	currency TEXT, 
	cost_source TEXT, 
	claimed_at DATETIME, 
	unresolved_since DATETIME, 
	evidence TEXT NOT NULL, 
	resubmitted_by JSON NOT NULL, 
	task_id_checked BOOLEAN NOT NULL, 
	serial BIGINT, 
	request_id TEXT, 
	PRIMARY KEY (idempotency_key)
);
INSERT INTO "cometapi_generations" VALUES('batch/stored','stored','task-1','claim-batch/stored',1,NULL,NULL,'https://api.example.com',NULL,NULL,'image_to_video','gen4_turbo','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"promptText": "Ein K\u00e4tzchen, \u732b"}',5.0,NULL,'2026-11-29 13:15:10.956410','2026-11-29 13:15:11.056854','2026-11-20 08:30:00.123456','2026-11-20 08:30:01.623456','2026-11-29 13:15:11.056765',3,'["https://cdn.example.com/out.mp4?<sha256:bb7f6cb3bae7>"]','{"/videos": [{"sha256": "0000000000000000000000000000000000000000000000000000000000000000", "size": 1000, "width": 64, "height": 48, "duration": 5.0, "frames": 120, "codec": "h264", "media_type": "video/mp4", "uri": "/videos/a.mp4", "poster": null, "sidecar": "/videos/a.json"}]}','','',1,0.32,'USD','estimated','2026-11-29 13:15:10.956400',NULL,'','[]',1,1,'req-1');
INSERT INTO "cometapi_generations" VALUES('batch/uncertain','uncertain',NULL,'claim-batch/uncertain',1,NULL,NULL,'https://api.example.com',NULL,NULL,'image_to_video','gen4_turbo','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"promptText": "slow zoom", "duration": 5}',5.0,NULL,'2026-11-29 13:15:11.064061','2026-11-29 13:15:11.070908',NULL,NULL,NULL,0,'[]','{}','','no answer',1,NULL,NULL,NULL,'2026-11-29 13:15:11.064052','2026-11-29 13:15:11.064052','','[]',1,2,NULL);
INSERT INTO "cometapi_generations" VALUES('batch/failed','failed','task-2','claim-batch/failed',1,NULL,NULL,'https://api.example.com',NULL,NULL,'image_to_video','gen4_turbo','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"promptText": "slow zoom", "duration": 5}',5.0,NULL,'2026-11-29 13:15:11.077357','2026-11-29 13:15:11.094770','2026-11-20 08:30:00.123456','2026-11-29 13:15:11.094719',NULL,0,'[]','{}','SAFETY','it was moderated',1,NULL,NULL,NULL,'2026-11-29 13:15:11.077349',NULL,'','[]',1,3,NULL);
INSERT INTO "cometapi_generations" VALUES('batch/rejected','rejected',NULL,'claim-batch/rejected',1,NULL,NULL,'https://api.example.com',NULL,NULL,'image_to_video','gen4_turbo','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"promptText": "slow zoom", "duration": 5}',5.0,NULL,'2026-11-29 13:15:11.100563','2026-11-29 13:15:11.108860',NULL,NULL,NULL,0,'[]','{}','','no',0,NULL,NULL,NULL,'2026-11-29 13:15:11.100555',NULL,'','[]',1,4,NULL);
INSERT INTO "cometapi_generations" VALUES('batch/claimed','claimed',NULL,'claim-batch/claimed',1,'host.example:1:2:3:4|run',1.79595817112298679349e+09,'https://api.example.com',NULL,NULL,'image_to_video','gen4_turbo','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','{"promptText": "slow zoom", "duration": 5}',5.0,NULL,'2026-11-29 13:15:11.118075','2026-11-29 13:15:11.118075',NULL,NULL,NULL,0,'[]','{}','','',1,NULL,NULL,NULL,'2026-11-29 13:15:11.118065','2026-11-29 13:15:11.118065','','[]',1,5,NULL);
INSERT INTO "cometapi_generations" VALUES('adopted','submitted','task-9','claim-adopted',0,NULL,NULL,'https://api.example.com',NULL,NULL,NULL,NULL,NULL,'null',5.0,NULL,'2026-11-29 13:15:11.129782','2026-11-29 13:15:11.129782','2026-11-29 13:15:11.129775',NULL,NULL,0,'[]','{}','','',1,NULL,NULL,NULL,NULL,NULL,'','[]',0,6,NULL);
CREATE TABLE cometapi_ledger_version (
	version INTEGER NOT NULL, 
	identity TEXT, 
	serial_floor BIGINT NOT NULL
);
INSERT INTO "cometapi_ledger_version" VALUES(1,'fe6b2c8c3f5e4e14aa141d3d364bb9d6',0);
CREATE INDEX ix_cometapi_generations_spending ON cometapi_generations (idempotency_key COLLATE BINARY, charges, cost, currency, cost_source, billed_seconds, model);
CREATE INDEX ix_cometapi_generations_task_id ON cometapi_generations (task_id);
CREATE INDEX ix_cometapi_generations_owner ON cometapi_generations (owner);
CREATE INDEX ix_cometapi_generations_created_at ON cometapi_generations (created_at);
CREATE INDEX ix_cometapi_generations_serial ON cometapi_generations (serial);
CREATE INDEX ix_cometapi_generations_flow_run_id ON cometapi_generations (flow_run_id);
CREATE INDEX ix_cometapi_generations_state ON cometapi_generations (state);
CREATE INDEX ix_cometapi_generations_kind ON cometapi_generations (base_url, route, model, submitted_at);
COMMIT;
