"""Integrations with other libraries; each module requires the package it is named after."""
