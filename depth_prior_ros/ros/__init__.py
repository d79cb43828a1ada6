"""The only room that imports rclpy."""
