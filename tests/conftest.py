"""pytest puts the folder of this file on the import path: helpers that unit and integration tests share lie here."""
