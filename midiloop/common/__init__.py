"""What knows no music: training, devices, quantisation, and whatever else both packages share."""
