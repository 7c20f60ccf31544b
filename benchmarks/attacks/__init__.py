"""Attacks by bad clients, defences against them, and what updates reveal."""
