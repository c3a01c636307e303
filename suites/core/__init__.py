"""What every suite shares: settings, method variants, rows, the runner and its worker, reports, the registry."""
