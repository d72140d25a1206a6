"""What learns symbols, trees and programs from answers alone?"""
